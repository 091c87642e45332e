"""Bricks that every architecture shares, and the contract they obey (:mod:`orrery.nn.contract`)."""
