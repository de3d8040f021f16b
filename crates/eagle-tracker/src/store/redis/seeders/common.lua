-- Stands before the scripts about seeders and leases. Arguments of them all: now, how long a seeder and a lease live without
-- being heard of, how long a lease lives without progress (microseconds).
local prefix = KEYS[1]
local now, lifetime, patience = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local alive, urls, places = prefix .. 'alive', prefix .. 'urls', prefix .. 'places'
local leases, renewed = prefix .. 'leases', prefix .. 'renewed'

-- A lease: its holder, its token, how far the fetch is, and since when it is there.
local function lease_of(digest)
  local text = redis.call('HGET', leases, digest)
  if not text then return nil end
  local holder, token, progress, progressed = string.match(text, '^(%w+) (%d+) (%d+) (%d+)$')
  if not holder then return nil end
  local last = redis.call('ZSCORE', renewed, digest)
  local lease = {holder = holder, token = token, progress = progress, progressed = progressed}
  lease.live = last and now - tonumber(last) < lifetime and now - tonumber(progressed) < patience
  return lease
end

local function keep(digest, lease)
  redis.call('HSET', leases, digest, table.concat({lease.holder, lease.token, lease.progress, lease.progressed}, ' '))
  redis.call('ZADD', renewed, ARGV[1], digest)
end

local function release(digest)
  local lease = lease_of(digest)
  if lease then redis.call('SREM', prefix .. 'holds:' .. lease.holder, digest) end
  redis.call('HDEL', leases, digest)
  redis.call('ZREM', renewed, digest)
end

local function release_all(holder)
  for _, digest in ipairs(redis.call('SMEMBERS', prefix .. 'holds:' .. holder)) do release(digest) end
  redis.call('DEL', prefix .. 'holds:' .. holder)
end

local function forget(id)
  local url = redis.call('HGET', urls, id)
  if url and redis.call('HGET', places, url) == id then redis.call('HDEL', places, url) end
  redis.call('HDEL', urls, id)
  redis.call('ZREM', alive, id)
  redis.call('HDEL', prefix .. 'about', id)
  redis.call('HDEL', prefix .. 'first', id)
end

-- Some at a time: more expire with the next look.
local function expire()
  local silent = string.format('%.0f', now - lifetime)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', alive, '-inf', silent, 'LIMIT', 0, 1000)) do forget(id) end
  for _, digest in ipairs(redis.call('ZRANGEBYSCORE', renewed, '-inf', silent, 'LIMIT', 0, 1000)) do release(digest) end
end

