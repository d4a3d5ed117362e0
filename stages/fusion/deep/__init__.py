"""Networks over stored tokens that tell which fault a record shows; all learn with the same heads, losses and budget."""
