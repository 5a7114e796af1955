"""How a number is taken: time, memory."""
