"""Class activation maps on disk: made at several scales, walked and refined, turned into masks, and scored."""
