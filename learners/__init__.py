"""Models that learn while the events stream by. Knows nothing of Kafka, files or feature windows."""
