"""What we know of Kafka and of Faust: the hardened engine, the table, the embedded broker."""
