"""What the arguments of a training are made of: their definitions, the fields that they become, and checks."""
