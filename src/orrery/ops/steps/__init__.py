"""One token at a time: a layer's step over prepared weights, in as few compiled passes as its data allow."""
