"""One file per architecture. Files here never import each other; what two of them share lives in `nn` or `ops`."""
