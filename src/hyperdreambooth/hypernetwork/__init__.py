"""From a picture of a face to its person's LiDB numbers: the hypernetwork and its training."""
