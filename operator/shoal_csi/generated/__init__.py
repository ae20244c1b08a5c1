"""What tools/protos makes of the two .proto files beside it: messages only, as the services are a table (services.py)."""
