"""Values and ports that every part of Anabranch shares; it knows none of them."""
