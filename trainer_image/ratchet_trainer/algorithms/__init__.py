"""Learning algorithms, one file each, to be read from top to bottom. They know nothing of Redis or S3."""
