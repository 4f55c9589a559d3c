"""Define what an example is. Outside of this package, only the networks interpret the shape of one."""
