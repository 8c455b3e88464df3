"""Statistics: intervals, paired comparisons, judge agreement, misalign@k."""
