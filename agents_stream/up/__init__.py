"""The parts of `agents-stream up`: children, broker, logs, what is seen and how it is told."""
