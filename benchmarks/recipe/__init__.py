"""The paper's ablations of progressive learning, on scikit-learn's digits and small networks."""
