"""What every other package stands on: settings, errors, time, blobs, Kafka, ClickHouse and processes.

Imports go down only (streams, then featurestore and learners, then this), so nothing here knows of a task
or a model.
"""
