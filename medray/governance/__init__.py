"""Guards: what protects people. They are called, not chosen: no study can switch one off by leaving out its kind."""
