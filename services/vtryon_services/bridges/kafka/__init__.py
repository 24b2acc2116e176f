"""The Kafka interface: whole jobs by `vtryon.jobs.…`, every stage by topics of its own."""
