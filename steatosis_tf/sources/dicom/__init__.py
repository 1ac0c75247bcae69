"""Hospital exports: read, de-identify, ingest, audit."""
