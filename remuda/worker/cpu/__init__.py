"""The runner of ranks that compute on the processor: tokens are arrays of the host, a step runs when it is launched."""
