"""`python -m agents_stream` is `agents-stream`."""

from agents_stream.cli import main

if __name__ == "__main__":
    main()
