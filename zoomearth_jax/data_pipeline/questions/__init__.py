"""Questions: the record, folders of them, LRS-GRO, procedural scenes."""
