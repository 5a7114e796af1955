"""`suite bench`: how fast, against what could be and against what others reach; and how exact."""
