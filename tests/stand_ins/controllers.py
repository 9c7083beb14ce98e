"""Controllers on the disk."""


def policy_of(folder):
    """The file that holds the tensors of the controller in a folder."""
    (path,) = folder.glob("policy-*.safetensors")
    return path
