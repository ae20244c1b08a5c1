"""What tests of several rooms share: real servers, and the account of what was skipped. No mocks of our own classes."""
