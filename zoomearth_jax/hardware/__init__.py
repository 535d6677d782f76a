"""What programs run on: chips and their figures, FLOPs, flags for TPUs."""
