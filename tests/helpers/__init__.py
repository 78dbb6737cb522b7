"""What several tests build on: small models, runs of the tools, and small data sets on disk."""
