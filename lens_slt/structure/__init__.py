"""Structure in matrices of tokens and components: modes, clusters, maps."""
