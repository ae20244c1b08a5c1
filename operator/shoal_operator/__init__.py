"""The operator: CachePools, Datasets and Preloads become cache nodes that serve them."""
