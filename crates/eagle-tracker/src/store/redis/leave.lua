-- Stands before the scripts that take a node out of a swarm. An empty swarm goes with its last member.
local function leave(prefix, digest, id)
  local seeders, proxies = prefix .. 'seeders:' .. digest, prefix .. 'proxies:' .. digest
  local gone = redis.call('HDEL', seeders, id) + redis.call('HDEL', proxies, id)
  if gone > 0 then
    redis.call('DECRBY', prefix .. 'entries', gone)
  end
  if redis.call('EXISTS', seeders, proxies) == 0 then
    redis.call('DEL', prefix .. 'swarm:' .. digest)
    redis.call('ZREM', prefix .. 'digests', digest)
    redis.call('ZREM', prefix .. 'changed', digest)
  end
end

