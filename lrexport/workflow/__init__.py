"""The workflow: train in SVD form, choose ranks, fold, fine-tune, export."""
