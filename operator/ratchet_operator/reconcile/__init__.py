"""One pure step per kind: the object, what is seen, and the time go in; a Plan comes out."""
