"""The way of an event, one module a stage. Stages never import each other: they meet at topics."""
