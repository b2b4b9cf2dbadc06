"""LeNet5 on MNIST, the MNIST column of the paper's Table 1: configurations, network, and runs in two frameworks."""
