"""The paper: what each stage minimises, and the targets of stage 3."""
