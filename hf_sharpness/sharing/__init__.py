"""What is shared with a model: the sharpness arguments as a file, from folders and from the Hub."""
