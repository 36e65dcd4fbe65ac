"""Networks: the CIFAR ResNets of the paper, and how a MODEL argument becomes an nn.Module."""
