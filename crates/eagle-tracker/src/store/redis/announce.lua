-- Applies a part of an announce of one node. All of it happens or nothing, in one exchange.
--
-- KEYS: prefix of all keys
-- ARGV: now, ttl (microseconds), most peers, most blobs, most peers of a blob, most blobs of a peer,
--       node, role ('s' or 'p'), what it says of itself (JSON),
--       and for each blob: digest, 'e' (evicted) or 'j', size, piece length, pieces
-- Answer: 'full' when there are too many nodes, 'stale' when what the node had must be taken away first;
--         else whether the node was known, and for each blob that was refused: its place, why, a number or two
local prefix = KEYS[1]
local now, ttl = tonumber(ARGV[1]), tonumber(ARGV[2])
local most_peers, most_blobs = tonumber(ARGV[3]), tonumber(ARGV[4])
local most_members, most_owned = tonumber(ARGV[5]), tonumber(ARGV[6])
local id, role, info = ARGV[7], ARGV[8], ARGV[9]
local node, owned = prefix .. 'node:' .. id, prefix .. 'blobs:' .. id

local last = redis.call('ZSCORE', prefix .. 'nodes', id)
local stored = redis.call('HMGET', node, 'role', 'resend')
local known = last and now - tonumber(last) < ttl and stored[1] == role
if not last and redis.call('ZCARD', prefix .. 'nodes') >= most_peers then
  return {'full'}
end
if not known then
  if redis.call('EXISTS', owned) == 1 then
    return {'stale'}
  end
  redis.call('HSET', node, 'joined', ARGV[1])
end
redis.call('ZADD', prefix .. 'nodes', 'GT', now, id)
redis.call('ZADD', prefix .. 'ids', 0, id)
redis.call('HSET', node, 'role', role, 'info', info)
redis.call('HDEL', node, 'resend')

local function join(digest, size, length, pieces)
  local swarm = prefix .. 'swarm:' .. digest
  local seeders, proxies = prefix .. 'seeders:' .. digest, prefix .. 'proxies:' .. digest
  local agreed = redis.call('HMGET', swarm, 'size', 'length', 'vouched')
  if not agreed[1] then
    if redis.call('SCARD', owned) >= most_owned then return {'node'} end
    if redis.call('ZCARD', prefix .. 'digests') >= most_blobs then return {'blobs'} end
    redis.call('HSET', swarm, 'size', size, 'length', length, 'vouched', '0', 'created', ARGV[1], 'grown', ARGV[1])
    redis.call('ZADD', prefix .. 'digests', 0, digest)
  elseif agreed[1] ~= size or agreed[2] ~= length then
    if agreed[3] == '1' or role ~= 's' then return {'geometry', agreed[1], agreed[2]} end
    -- Whoever was here believes in another blob; they come back when they have learned better.
    redis.call('DECRBY', prefix .. 'entries', redis.call('HLEN', seeders) + redis.call('HLEN', proxies))
    redis.call('DEL', seeders, proxies)
    redis.call('HSET', swarm, 'size', size, 'length', length, 'created', ARGV[1], 'grown', ARGV[1])
  end
  if role == 's' then
    redis.call('HSET', swarm, 'vouched', '1')
  end
  local members = role == 's' and seeders or proxies
  local before = redis.call('HGET', members, id)
  if before then
    local after = (string.match(before, '^%d+') or ARGV[1]) .. ':' .. pieces
    if after ~= before then
      redis.call('HSET', members, id, after)
      redis.call('ZADD', prefix .. 'changed', now, digest)
    end
    return nil
  end
  if redis.call('HLEN', seeders) + redis.call('HLEN', proxies) >= most_members then return {'swarm'} end
  if redis.call('SCARD', owned) >= most_owned and redis.call('SISMEMBER', owned, digest) == 0 then return {'node'} end
  redis.call('HSET', members, id, ARGV[1] .. ':' .. pieces)
  redis.call('INCR', prefix .. 'entries')
  redis.call('HSET', swarm, 'grown', ARGV[1])
  redis.call('ZADD', prefix .. 'changed', now, digest)
  redis.call('SADD', owned, digest)
  return nil
end

local refused = {}
for place = 0, (#ARGV - 9) / 5 - 1 do
  local first = 10 + place * 5
  local digest = ARGV[first]
  if ARGV[first + 1] == 'e' then
    if redis.call('SREM', owned, digest) == 1 then leave(prefix, digest, id) end
  else
    local why = join(digest, ARGV[first + 2], ARGV[first + 3], ARGV[first + 4])
    if why then
      refused[#refused + 1] = {tostring(place), unpack(why)}
    end
  end
end
return {'ok', (known and not stored[2]) and '1' or '0', refused}
