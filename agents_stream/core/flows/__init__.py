"""The rules of SPEC §4, one flow a page. A flow reads a session and returns instructions."""
