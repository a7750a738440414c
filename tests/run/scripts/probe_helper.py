def fail():
    raise ValueError("a failure")
