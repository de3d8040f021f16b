-- Frees what has ended, and lists the seeders that are alive.
--
-- KEYS: prefix
-- ARGV: as in common.lua
-- Answer: number of leases, and for each seeder: what it says of itself, when it was heard of first and last, number of its leases
expire()
local answer = {tostring(redis.call('HLEN', leases))}
local living = redis.call('ZRANGE', alive, 0, -1, 'WITHSCORES')
for place = 1, #living, 2 do
  local id, last = living[place], tonumber(living[place + 1])
  if now - last < lifetime then
    local told = {redis.call('HGET', prefix .. 'about', id), redis.call('HGET', prefix .. 'first', id)}
    answer[#answer + 1] = told[1] or ''
    answer[#answer + 1] = told[2] or ''
    answer[#answer + 1] = string.format('%.0f', last)
    answer[#answer + 1] = tostring(redis.call('SCARD', prefix .. 'holds:' .. id))
  end
end
return answer
