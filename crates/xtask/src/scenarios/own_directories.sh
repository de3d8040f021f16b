# Directories that commands of pages may change, laid over the machine's own in a mount namespace that ends with the walk. $WALK is the
# directory of the walk.
over() {
  mkdir -p "$WALK/over$1" "$WALK/work$1"
  mount -t overlay overlay -o "lowerdir=$1,upperdir=$WALK/over$1,workdir=$WALK/work$1" "$1"
}
in_place_of() {
  mkdir -p "$WALK/place$1"
  mount --bind "$WALK/place$1" "$1"
}
