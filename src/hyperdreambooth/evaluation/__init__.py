"""Is it the right person in the right style? Judges that look at pictures, and scores of what they see."""
