"""HTTP of a worker: the API, the pages, and the taking of events."""
