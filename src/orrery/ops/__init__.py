"""The mathematics as pure functions, one file per recurrence family, each with a reference, a fast and a step form."""
