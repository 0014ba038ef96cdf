"""Systems of the comparison that this kit does not train from its own instructions."""
