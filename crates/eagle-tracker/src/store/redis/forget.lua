-- Takes a node out of its swarms, a part at a time, and then out of the tables.
--
-- KEYS: prefix
-- ARGV: node, most swarms to leave, and optionally a time (microseconds): only when its last announce was not later
-- Answer: 1 when it is out or was to stay, 0 when there is more to do
local prefix, id = KEYS[1], ARGV[1]
local owned = prefix .. 'blobs:' .. id
if ARGV[3] then
  local last = redis.call('ZSCORE', prefix .. 'nodes', id)
  if last and tonumber(last) > tonumber(ARGV[3]) then return 1 end
end
local digests = redis.call('SPOP', owned, ARGV[2])
for _, digest in ipairs(digests) do
  leave(prefix, digest, id)
end
if redis.call('EXISTS', owned) == 1 then return 0 end
redis.call('ZREM', prefix .. 'nodes', id)
redis.call('ZREM', prefix .. 'ids', id)
redis.call('DEL', prefix .. 'node:' .. id)
return 1
