-- Peers of a blob that could be named: of many a random part.
--
-- KEYS: prefix
-- ARGV: digest, now, ttl (microseconds), most seeders, most proxies
-- Answer: nothing when there is no swarm; else size, piece length, time of the last growth, and then for
--         each living peer what it says of itself and what it owns
local prefix, digest = KEYS[1], ARGV[1]
local now, ttl = tonumber(ARGV[2]), tonumber(ARGV[3])
local swarm = redis.call('HMGET', prefix .. 'swarm:' .. digest, 'size', 'length', 'grown')
if not swarm[1] then return nil end
local view = {swarm[1], swarm[2], swarm[3]}
for kind, most in pairs({seeders = ARGV[4], proxies = ARGV[5]}) do
  local members = redis.call('HRANDFIELD', prefix .. kind .. ':' .. digest, most, 'WITHVALUES')
  for place = 1, #members, 2 do
    local id = members[place]
    local last = redis.call('ZSCORE', prefix .. 'nodes', id)
    if last and now - tonumber(last) < ttl then
      view[#view + 1] = redis.call('HGET', prefix .. 'node:' .. id, 'info')
      view[#view + 1] = members[place + 1]
    end
  end
end
return view
