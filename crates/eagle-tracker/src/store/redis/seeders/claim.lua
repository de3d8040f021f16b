-- Asks for the lease of a blob. Its own holder gets it anew, with another token.
--
-- KEYS: prefix
-- ARGV: as in common.lua, most leases, most leases of a seeder, digest, seeder
-- Answer: 'granted' and a token higher than all before, 'held' and by whom, or 'full'
local digest, id = ARGV[6], ARGV[7]
local lease = lease_of(digest)
if lease and lease.live and lease.holder ~= id then return {'held', lease.holder} end
release(digest)
if redis.call('HLEN', leases) >= tonumber(ARGV[4]) then expire() end
local own = redis.call('SCARD', prefix .. 'holds:' .. id)
if redis.call('HLEN', leases) >= tonumber(ARGV[4]) or own >= tonumber(ARGV[5]) then return {'full'} end
-- Higher also than those from before Redis lost its data, and below 2^53.
local token = string.format('%.0f', math.max((tonumber(redis.call('GET', prefix .. 'token') or '0') or 0) + 1, now))
redis.call('SET', prefix .. 'token', token)
keep(digest, {holder = id, token = token, progress = '0', progressed = ARGV[1]})
redis.call('SADD', prefix .. 'holds:' .. id, digest)
return {'granted', token}
