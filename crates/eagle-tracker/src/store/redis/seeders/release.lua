-- Gives a lease back if it is of this token; without a token, forgets a seeder that ends, with its leases.
--
-- KEYS: prefix
-- ARGV: as in common.lua, digest or seeder, token or nothing
if ARGV[5] then
  local lease = lease_of(ARGV[4])
  if lease and lease.token == ARGV[5] then release(ARGV[4]) end
else
  forget(ARGV[4])
  release_all(ARGV[4])
end
return 1
