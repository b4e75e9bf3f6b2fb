"""One pure builder per child: values in, an object out. No I/O, no clock, no randomness."""
